"""xenstore's wire and ring: numbers and layouts of Xen's public header ``io/xs_wire.h``."""

from __future__ import annotations

import errno
from struct import Struct

# enum xsd_sockmsg_type
XS_CONTROL = 0
XS_DIRECTORY = 1
XS_READ = 2
XS_GET_PERMS = 3
XS_WATCH = 4
XS_UNWATCH = 5
XS_TRANSACTION_START = 6
XS_TRANSACTION_END = 7
XS_INTRODUCE = 8
XS_RELEASE = 9
XS_GET_DOMAIN_PATH = 10
XS_WRITE = 11
XS_MKDIR = 12
XS_RM = 13
XS_SET_PERMS = 14
XS_WATCH_EVENT = 15
XS_ERROR = 16
XS_IS_DOMAIN_INTRODUCED = 17
XS_RESUME = 18
XS_SET_TARGET = 19
XS_RESET_WATCHES = 21
XS_DIRECTORY_PART = 22
XS_GET_FEATURE = 23
XS_SET_FEATURE = 24
XS_GET_QUOTA = 25
XS_SET_QUOTA = 26

#: struct xsd_sockmsg: type, req_id, tx_id, len; ``len`` bytes of payload follow.
XSD_SOCKMSG = Struct("<4I")

#: xsd_errors: an error travels by its name.
XSD_ERRORS = {
    errno.EINVAL: "EINVAL",
    errno.EACCES: "EACCES",
    errno.EEXIST: "EEXIST",
    errno.EISDIR: "EISDIR",
    errno.ENOENT: "ENOENT",
    errno.ENOMEM: "ENOMEM",
    errno.ENOSPC: "ENOSPC",
    errno.EIO: "EIO",
    errno.ENOTEMPTY: "ENOTEMPTY",
    errno.ENOSYS: "ENOSYS",
    errno.EROFS: "EROFS",
    errno.EBUSY: "EBUSY",
    errno.EAGAIN: "EAGAIN",
    errno.EISCONN: "EISCONN",
    errno.E2BIG: "E2BIG",
    errno.EPERM: "EPERM",
}

XENSTORE_PAYLOAD_MAX = 4096
XENSTORE_ABS_PATH_MAX = 3072
XENSTORE_REL_PATH_MAX = 2048

# struct xenstore_domain_interface: byte offsets within the shared page
XENSTORE_RING_SIZE = 1024
REQ = 0
RSP = 1024
REQ_CONS = 2048
REQ_PROD = 2052
RSP_CONS = 2056
RSP_PROD = 2060
SERVER_FEATURES = 2064
CONNECTION = 2068
ERROR = 2072

XENSTORE_SERVER_FEATURE_RECONNECTION = 1
XENSTORE_SERVER_FEATURE_ERROR = 2
XENSTORE_SERVER_FEATURE_WATCHDEPTH = 4

# the values of CONNECTION
XENSTORE_CONNECTED = 0
XENSTORE_RECONNECT = 1

# the values of ERROR
XENSTORE_ERROR_NONE = 0
XENSTORE_ERROR_COMM = 1
XENSTORE_ERROR_RINGIDX = 2
XENSTORE_ERROR_PROTO = 3
