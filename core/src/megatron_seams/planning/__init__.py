"""From a recipe and an environment to a plan, or to every reason against one."""
