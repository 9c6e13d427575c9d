"""Turns a corpus into packed Arrow shards: read, tokenise, pack, write (Ray Data).

Parts of the corpus are tokenised in parallel, each into a file; rows are planned from the documents'
lengths alone; shards are then written in parallel to that plan. So the result does not depend on who did
what and when, memory is bounded whatever the corpus' size, and an interrupted run goes on from its last
part or shard.
"""
