"""The verb ``convert``: between LeRobot versions and webdataset shards, without re-encoding what need not be."""
