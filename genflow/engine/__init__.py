from genflow.engine.muon import Muon
from genflow.engine.schedule import WarmupLR
