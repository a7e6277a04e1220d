"""Proximal policy optimisation. In the order of a rollout: phases, prompts, rollout, reward, logprobs, advantages,
experience, loss; `objective` connects them.
"""
