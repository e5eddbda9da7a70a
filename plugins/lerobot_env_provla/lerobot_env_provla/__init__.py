"""provla's worlds for LeRobot, which imports what distributions of such a name hold: that registers them."""

from provla.plugin.environment import ProvlaEnv as ProvlaEnv
