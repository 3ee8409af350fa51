"""The outer Xen, sans-IO: tables and rules. It knows no ioctl, thread, file or loop.

What must happen outside goes through the doors: ``doors.Platform`` and ``doors.GrantFrames``, and
``evtchn.Delivery`` for events. A hypercall comes in by ``hypercall.Hypercalls.call``; each family of them has
its file, and each operation is a function ``do_*(state, caller, args)`` in the family's table.
"""
