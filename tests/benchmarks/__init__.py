"""`make bench`: how fast a gateway is, as ratios to what the same machine does in the same run.

Start reading in `__main__` (the order of a run), then `results` (figures, targets, table), `world` (broker,
database and `fleetgate serve`), `wire` and `fleet` (the load), and the modules that measure: `baselines`,
`hellos`, `offers`, `mass`, `stages`. What each figure means is said in docs/performance.md.
"""
