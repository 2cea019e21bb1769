"""The comparison of every stage of the export with the fp32 reference, on the same inputs.

Only `reference_stage`, `transformers_stage`, `program_executor` and `pipeline` need torch: a recorded run (`golden`) is
compared with an engine on a machine without it.
"""
