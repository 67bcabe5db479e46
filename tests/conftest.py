import os

# Small networks on few cores: one thread each is fastest, in this process and in those it starts.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")
