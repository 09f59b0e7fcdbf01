"""`run_eval paper report`: a page with every table and figure of the AHN paper beside what runs
measured. No torch.

`published` is what the paper prints, `tried` what run folders are of it, `measured` the figures of
one beside the other, `claims` what the paper says in words and whether it holds, `sections` the
tables and figures in their order, `page` the file.
"""
