"""What ``benchmarks/pretrain_quality.py`` is made of: data, our recipes, the peers, scores and the report."""
