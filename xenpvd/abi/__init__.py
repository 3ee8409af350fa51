"""Bytes and numbers of the Xen and KVM interfaces: a file per header, named as the header is.

Constants keep their C spelling, so that grep works across Xen, Linux and this tree. Layouts are
``struct.Struct`` objects; nothing here has behaviour.
"""
