# Workers may use the bucket and nothing else. The head may also start and end instances, but only those that bear this
# cluster's tag, in this module's subnets, with the workers' identity.

data "aws_caller_identity" "current" {}

data "aws_partition" "current" {}

locals {
  ray_tag = "ray-cluster-name" # set by Ray on every instance it starts
  ec2_arn = "arn:${data.aws_partition.current.partition}:ec2:${data.aws_region.current.name}:${data.aws_caller_identity.current.account_id}"
}

data "aws_iam_policy_document" "ec2_may_assume" {
  statement {
    actions = ["sts:AssumeRole"]

    principals {
      type        = "Service"
      identifiers = ["ec2.amazonaws.com"]
    }
  }
}

resource "aws_iam_role" "node" {
  for_each           = toset(["head", "worker"])
  name               = "${var.name}-${each.key}"
  description        = "The Ray cluster's ${each.key}"
  assume_role_policy = data.aws_iam_policy_document.ec2_may_assume.json
}

resource "aws_iam_instance_profile" "node" {
  for_each = aws_iam_role.node
  name     = each.value.name
  role     = each.value.name
}

resource "aws_iam_role_policy" "bucket" {
  for_each = aws_iam_role.node
  name     = "bucket"
  role     = each.value.id
  policy   = data.aws_iam_policy_document.bucket.json
}

resource "aws_iam_role_policy" "autoscaler" {
  name   = "autoscaler"
  role   = aws_iam_role.node["head"].id
  policy = data.aws_iam_policy_document.autoscaler.json
}

data "aws_iam_policy_document" "bucket" {
  statement {
    sid       = "List"
    actions   = ["s3:ListBucket", "s3:GetBucketLocation", "s3:ListBucketMultipartUploads"]
    resources = [aws_s3_bucket.runs.arn]
  }

  # Deleting a version is left out: what a node deletes comes back.
  statement {
    sid       = "ReadAndWrite"
    actions   = ["s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload", "s3:ListMultipartUploadParts"]
    resources = ["${aws_s3_bucket.runs.arn}/*"]
  }
}

data "aws_iam_policy_document" "autoscaler" {
  statement {
    sid       = "Look" # these actions know no resources
    actions   = ["ec2:DescribeInstances", "ec2:DescribeInstanceStatus", "ec2:DescribeInstanceTypes", "ec2:DescribeLaunchTemplateVersions"]
    resources = ["*"]
  }

  statement {
    sid       = "StartTaggedInstances"
    actions   = ["ec2:RunInstances"]
    resources = ["${local.ec2_arn}:instance/*"]

    condition {
      test     = "StringEquals"
      variable = "aws:RequestTag/${local.ray_tag}"
      values   = [var.name]
    }
  }

  statement {
    sid     = "StartThemHere"
    actions = ["ec2:RunInstances"]
    resources = concat(
      aws_subnet.private[*].arn,
      [aws_security_group.nodes.arn, aws_launch_template.node["worker"].arn],
      ["${local.ec2_arn}:key-pair/${var.key_name}", "${local.ec2_arn}:network-interface/*", "${local.ec2_arn}:volume/*", "${local.ec2_arn}:spot-instances-request/*"],
      ["arn:${data.aws_partition.current.partition}:ec2:${data.aws_region.current.name}::image/${data.aws_ssm_parameter.machine_image.insecure_value}"],
    )
  }

  statement {
    sid       = "TagWhatItStarts"
    actions   = ["ec2:CreateTags"]
    resources = ["${local.ec2_arn}:instance/*", "${local.ec2_arn}:volume/*"]

    condition {
      test     = "StringEquals"
      variable = "ec2:CreateAction"
      values   = ["RunInstances"]
    }
  }

  statement {
    sid       = "TagAndEndItsOwn"
    actions   = ["ec2:CreateTags", "ec2:TerminateInstances"]
    resources = ["${local.ec2_arn}:instance/*"]

    condition {
      test     = "StringEquals"
      variable = "aws:ResourceTag/${local.ray_tag}"
      values   = [var.name]
    }
  }

  statement {
    sid       = "GiveTheWorkersIdentity"
    actions   = ["iam:PassRole"]
    resources = [aws_iam_role.node["worker"].arn]

    condition {
      test     = "StringEquals"
      variable = "iam:PassedToService"
      values   = ["ec2.amazonaws.com"]
    }
  }
}
