"""Processes that use one store while its servers are killed, paused and cut off, and who checks what they saw.

``worker`` is one such process, ``history`` what all of them did, ``troubles`` what befalls the servers meanwhile.
"""
