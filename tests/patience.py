"""How long a test waits."""

# Seconds for any process, thread or page. No test is about speed: only what hangs takes as long, on any machine.
PATIENCE = 1800.0
