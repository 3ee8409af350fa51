"""The outer Xen, sans-IO: tables and rules. It knows no ioctl, thread, file or loop.

What must happen outside (KVM attributes, eventfds, stopping vCPUs) goes through the ``Platform`` door that
``hypercall.py`` declares and ``vmm/delivery.py`` and ``vmm/machine.py`` fit.
"""
