"""Denoising, and what it costs. Imports no bentoml, prometheus or boto3."""

import logging
import os

# Before torch loads its OpenMP runtime. By default idle threads spin, and where another process wants the core too a UNet
# call took ten times as long (86 ms a row against 7.5 ms, two threads on two cores, one of them busy); threads that sleep
# took 10 ms there and 9 ms on an idle machine.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

logging.getLogger(__name__).addHandler(logging.NullHandler())  # whoever runs the engine decides where its log goes
