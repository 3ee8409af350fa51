from __future__ import annotations

import pytest

from xenpvd.backends.xenstore.quota import DOM0, Quota
from xenpvd.errors import XenError

ROWS = [
    (lambda q: q.check_nodes(999, 1), lambda q: q.check_nodes(1000, 1), "No space"),
    (lambda q: q.check_nodes(2000, 0), lambda q: q.check_nodes(990, 11), "No space"),
    (lambda q: q.check_node_size(2048), lambda q: q.check_node_size(2049), "No space"),
    (lambda q: q.check_permissions(5), lambda q: q.check_permissions(6), "No space"),
    (lambda q: q.check_watches(128), lambda q: q.check_watches(129), "too long"),
    (lambda q: q.check_transactions(10), lambda q: q.check_transactions(11), "No space"),
    (lambda q: q.check_transaction_nodes(1024), lambda q: q.check_transaction_nodes(1025), "No space"),
]


@pytest.mark.parametrize(("good", "bad", "error"), ROWS)
def test_limits(good, bad, error):
    good(Quota())
    bad(DOM0)
    with pytest.raises(XenError, match=error):
        bad(Quota())
