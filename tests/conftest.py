"""Before any test imports numpy: one thread for each numeric library, since the test runner uses the cores itself."""

import os

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
