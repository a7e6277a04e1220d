"""Proximal policy optimisation: phases -> prompts -> rollout -> reward -> scoring -> experience -> loss,
tied together in objective."""
