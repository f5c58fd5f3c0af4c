"""The shard format: plain webdataset tars beside one index that makes them seekable and checkable."""
