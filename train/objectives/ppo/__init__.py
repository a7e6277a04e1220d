"""Proximal policy optimisation. In the order of a rollout: phases, prompts, rollout, reward, scoring, advantages,
experience, loss; `objective` connects them.
"""
