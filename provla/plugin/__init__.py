"""provla inside LeRobot: its policies are LeRobot policies, its worlds LeRobot environments.

LeRobot finds both by the names of two distributions, `lerobot_policy_provla` and `lerobot_env_provla` (plugins/), which
import what stands here. Its factories want the configuration, the policy and the processors side by side, in modules
of these names. `folder.py` writes what they load; `robot.py` holds a policy against the robot that it is to drive;
`environment.py` are the worlds.
"""
