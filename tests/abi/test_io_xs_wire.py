"""The numbers against the header's own rules: enum order, struct offsets."""

from __future__ import annotations

import errno

from xenpvd.abi import io_xs_wire as abi

# enum xsd_sockmsg_type in its order; - is the gap that XS_RESTRICT has left
ENUM = """
    CONTROL DIRECTORY READ GET_PERMS WATCH UNWATCH TRANSACTION_START TRANSACTION_END INTRODUCE RELEASE
    GET_DOMAIN_PATH WRITE MKDIR RM SET_PERMS WATCH_EVENT ERROR IS_DOMAIN_INTRODUCED RESUME SET_TARGET -
    RESET_WATCHES DIRECTORY_PART GET_FEATURE SET_FEATURE GET_QUOTA SET_QUOTA
"""


def test_types_follow_the_enum():
    assert {f"XS_{name}": i for i, name in enumerate(ENUM.split()) if name != "-"} == {
        name: value for name, value in vars(abi).items() if name.startswith("XS_")
    }


def test_the_interface_is_two_rings_and_seven_words():
    words = [abi.REQ_CONS, abi.REQ_PROD, abi.RSP_CONS, abi.RSP_PROD]
    words += [abi.SERVER_FEATURES, abi.CONNECTION, abi.ERROR]
    assert words == list(range(2 * abi.XENSTORE_RING_SIZE, 2 * abi.XENSTORE_RING_SIZE + 28, 4))
    assert (abi.REQ, abi.RSP) == (0, abi.XENSTORE_RING_SIZE)
    assert abi.XSD_SOCKMSG.size == 16


def test_errors_are_named_as_the_c_library_names_them():
    assert all(errno.errorcode[number] == name for number, name in abi.XSD_ERRORS.items())
    assert len(abi.XSD_ERRORS) == 16
