"""Training: the readable loop, and what it is made of. Open `loop.py` first."""
