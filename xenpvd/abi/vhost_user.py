"""The vhost-user protocol's messages, and the virtio-blk device that is spoken to by it; numbers and layouts.

QEMU's docs/interop/vhost-user.rst and the OASIS virtio standard have them; names are as there. All is in the
byte order of the host, which is little-endian here.
"""

from __future__ import annotations

from struct import Struct

#: request, flags, size of what follows
HEADER = Struct("<III")
VERSION, REPLY, NEED_REPLY = 0x1, 0x4, 0x8

GET_FEATURES, SET_FEATURES, SET_OWNER = 1, 2, 3
SET_MEM_TABLE = 5
SET_VRING_NUM, SET_VRING_ADDR, SET_VRING_BASE = 8, 9, 10
SET_VRING_KICK, SET_VRING_CALL = 12, 13
GET_PROTOCOL_FEATURES, SET_PROTOCOL_FEATURES, GET_QUEUE_NUM, SET_VRING_ENABLE = 15, 16, 17, 18
GET_CONFIG = 24

U64 = Struct("<Q")
#: index, number
VRING_STATE = Struct("<II")
#: index, flags, and the addresses of descriptors, used ring, available ring and log
VRING_ADDR = Struct("<IIQQQQ")
#: of one region: how many, padding, guest physical address, size, user address, offset in its file
MEM_TABLE = Struct("<IIQQQQ")
#: offset, size, flags; the bytes follow
CONFIG = Struct("<III")
CONFIG_MAX = 60

PROTOCOL_F_MQ, PROTOCOL_F_REPLY_ACK, PROTOCOL_F_CONFIG = 0, 3, 9
F_PROTOCOL_FEATURES = 30

VIRTIO_RING_F_EVENT_IDX, VIRTIO_F_VERSION_1 = 29, 32
VIRTIO_BLK_F_RO, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_CONFIG_WCE = 5, 9, 11
VIRTIO_BLK_F_MQ, VIRTIO_BLK_F_DISCARD = 12, 13

VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_DISCARD = 0, 1, 4, 11
VIRTIO_BLK_S_OK, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_UNSUPP = 0, 1, 2

#: struct virtio_blk_config: the capacity in sectors of 512 bytes, and the longest discard in them
BLK_CAPACITY, BLK_MAX_DISCARD_SECTORS = (Struct("<Q"), 0), (Struct("<I"), 36)

#: struct virtio_blk_outhdr: type, ioprio, sector
OUTHDR = Struct("<IIQ")
#: struct virtio_blk_discard_write_zeroes: sector, num_sectors, flags
DISCARD = Struct("<QII")

#: struct vring_desc: address, length, flags, next
DESC = Struct("<QIHH")
VRING_DESC_F_NEXT, VRING_DESC_F_WRITE = 1, 2
