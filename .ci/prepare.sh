# What `run` and `nightly` have in common; they source it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if [ -d ../shared/mnist ]; then
    MNIST_FLAX_MANUAL_DIR=$(cd ../shared/mnist && pwd)
    export MNIST_FLAX_MANUAL_DIR
fi
# Where containers set it, every one of the tests' processes would compile all imports again.
unset PYTHONDONTWRITEBYTECODE
# Nothing that an earlier run prepared may help.
TFDS_DATA_DIR=$(mktemp -d)
export TFDS_DATA_DIR
log=$(mktemp)
trap 'rm -rf "$TFDS_DATA_DIR" "$log"' EXIT

# The tests of the demo's page need a browser and are skipped without one.
if [ -z "$(command -v chromium || command -v google-chrome)" ] && [ "$(id -u)" = 0 ]; then
    { apt-get update && apt-get install --yes --no-install-recommends chromium; } >&2 ||
        echo "Chromium cannot be installed here" >&2
fi
