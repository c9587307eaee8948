"""Parts of `tools/gpu_check.py`: what it measures, and the images it takes along."""
