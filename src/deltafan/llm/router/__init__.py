"""Several deployments under one name, and models to fall back on: a ring of completions. Works without Redis."""

from deltafan.llm.router.deployment import Deployment, DeploymentStatus
from deltafan.llm.router.health import Rules
from deltafan.llm.router.output import MidStream
from deltafan.llm.router.router import Failover, Router
from deltafan.llm.router.strategy import Strategy

__all__ = ["Deployment", "DeploymentStatus", "Failover", "MidStream", "Router", "Rules", "Strategy"]
