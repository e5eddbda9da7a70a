"""provla's policies for LeRobot, which imports what distributions of such a name hold: that registers them."""

from provla.plugin.configuration_provla import ProvlaConfig as ProvlaConfig
