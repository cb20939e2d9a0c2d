"""Side-by-side ratios against the peers; see ``benchmarks/README.md``."""
