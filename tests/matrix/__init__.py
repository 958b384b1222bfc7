"""What `properties/test_matrix.py` draws, runs and compares: everything that has a test of its own, crossed."""
