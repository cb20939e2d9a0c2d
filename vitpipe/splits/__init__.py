"""Groups to splits: the append-only table, the leak check, the ledger of the test split."""

from vitpipe.splits.assign import assign_groups, content_order
from vitpipe.splits.leaks import check_leaks
from vitpipe.splits.ledger import record_test_use
from vitpipe.splits.table import read_splits, update_splits

__all__ = ["assign_groups", "check_leaks", "content_order", "read_splits", "record_test_use", "update_splits"]
