"""One HTML file that shows what runs did and what was learnt from it: curves, tables, every sampled rollout.

Reads run folders and writes nothing into them. Start reading in `page.py`.
"""
