"""Guards that restore state: random state, module modes, buffers, parameters, numerical precision.

Looking changes nothing: every probe runs inside :func:`optland.context.probe.probe_context`, and what it finds on
entry is there again, bit for bit, on exit, also when the probe raises.
"""
