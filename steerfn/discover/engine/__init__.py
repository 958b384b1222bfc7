"""What every discovery method runs on: texts, states, runs (cut, split and merged), and how good the outcome is."""
