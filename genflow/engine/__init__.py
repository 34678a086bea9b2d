from genflow.engine.schedule import WarmupLR
