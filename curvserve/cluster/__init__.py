"""Sessions on workers of a Ray cluster: more than one device, more than one host.

Needs the extra `curvserve[ray]`; nothing else in the package imports this.
"""
