"""How a backbone is measured: speed and memory (timing), the same network as others write it
(peers), and a check of all that a GPU does (gpu_check). Torch and MMEngine are enough to run it."""
