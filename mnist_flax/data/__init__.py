"""Files and the internet to arrays."""

import numpy as np

# Images uint8 [N, 28, 28, 1] and labels int32 [N].
Arrays = tuple[np.ndarray, np.ndarray]
