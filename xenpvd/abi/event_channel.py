"""xen/include/public/event_channel.h: event_channel_op, 2-level ABI. The same for both widths."""

from __future__ import annotations

from struct import Struct

EVTCHNOP_bind_interdomain = 0
EVTCHNOP_bind_virq = 1
EVTCHNOP_bind_pirq = 2
EVTCHNOP_close = 3
EVTCHNOP_send = 4
EVTCHNOP_status = 5
EVTCHNOP_alloc_unbound = 6
EVTCHNOP_bind_ipi = 7
EVTCHNOP_bind_vcpu = 8
EVTCHNOP_unmask = 9
EVTCHNOP_reset = 10
EVTCHNOP_init_control = 11
EVTCHNOP_expand_array = 12
EVTCHNOP_set_priority = 13

EVTCHNSTAT_closed = 0
EVTCHNSTAT_unbound = 1
EVTCHNSTAT_interdomain = 2
EVTCHNSTAT_pirq = 3
EVTCHNSTAT_virq = 4
EVTCHNSTAT_ipi = 5

evtchn_alloc_unbound = Struct("<HHI")  # dom remote_dom port(OUT)
evtchn_bind_interdomain = Struct("<H2xII")  # remote_dom remote_port local_port(OUT)
evtchn_bind_virq = Struct("<III")  # virq vcpu port(OUT)
evtchn_bind_pirq = Struct("<III")  # pirq flags port(OUT)
evtchn_bind_ipi = Struct("<II")  # vcpu port(OUT)
evtchn_bind_vcpu = Struct("<II")  # port vcpu
evtchn_port = Struct("<I")  # evtchn_close, evtchn_send, evtchn_unmask
evtchn_reset = Struct("<H")  # dom
#: dom port status vcpu u.{unbound.dom|interdomain.dom|virq} u.interdomain.port
evtchn_status = Struct("<H2xIIIII")
