"""The environment of the tests and of the processes that they start, set before JAX is imported."""

import atexit
import os
import shutil
import tempfile

# Arithmetic is strict.
os.environ["JAX_NUMPY_DTYPE_PROMOTION"] = "strict"
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"

# Programs are compiled once for all of xdist's workers, which inherit the folder, and are not
# taken from an earlier session. JAX locks the folder only if its size is limited.
if "PYTEST_XDIST_WORKER" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp()
    os.environ["JAX_COMPILATION_CACHE_MAX_SIZE"] = str(2**40)
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
