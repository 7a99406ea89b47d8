"""The parts of ``pretrain_speed.py``, one claim each."""
