"""Problems drawn by the package reasoning-gym: the task, what it draws, and the cache of that."""

from omni_thinker.tasks.gym.task import GymTask

__all__ = ["GymTask"]
