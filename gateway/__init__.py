"""Talks: MQTT, HTTP, command line, scheduler, wiring. Owns threads and time, and decides nothing."""
