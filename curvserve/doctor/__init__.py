"""`curvserve doctor`: `machine` looks at what a server would find here, `server` at one that runs.

Neither is imported with the package: of a running server nothing heavy is needed.
"""
