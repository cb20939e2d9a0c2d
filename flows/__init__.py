"""Orchestration and the command line. The only place that imports prefect; every task body is one call into vitpipe."""
