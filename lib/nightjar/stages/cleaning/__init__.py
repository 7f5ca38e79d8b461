"""What the Spark stages that read raw rows share: how a cell is read, which rows are kept, whose are not."""
