"""Whom a domid means."""

from __future__ import annotations

import pytest

from xenpvd.abi.xen import DOMID_SELF, EPERM, ESRCH
from xenpvd.errors import XenError
from xenpvd.vmm.xen.domid import check_self


@pytest.mark.parametrize("domid", [7, DOMID_SELF])
def test_the_caller(domid: int) -> None:
    check_self(domid, 7)


@pytest.mark.parametrize("domid, errno", [(0, EPERM), (1, ESRCH), (0x7FF1, ESRCH), (0xFFFF, ESRCH)])
def test_others(domid: int, errno: int) -> None:
    with pytest.raises(XenError) as caught:
        check_self(domid, 7)
    assert caught.value.errno == errno
