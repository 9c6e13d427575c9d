# Nodes talk to each other on any port and to nobody else. From outside, one door: SSH to the head, from operators'
# addresses. Ray's ports (6379, 8265, 10001) are never opened: whoever reaches them may run code on the cluster.

resource "aws_default_security_group" "closed" {
  vpc_id = aws_vpc.cluster.id
  tags   = { Name = "${var.name}-default-closed" }
}

resource "aws_security_group" "nodes" {
  name        = "${var.name}-nodes"
  description = "Every node of the Ray cluster: open to its own kind only"
  vpc_id      = aws_vpc.cluster.id
  tags        = { Name = "${var.name}-nodes" }

  lifecycle {
    create_before_destroy = true
  }
}

resource "aws_vpc_security_group_ingress_rule" "between_nodes" {
  security_group_id            = aws_security_group.nodes.id
  referenced_security_group_id = aws_security_group.nodes.id
  ip_protocol                  = "-1"
  description                  = "Ray, NCCL and gloo between nodes"
}

resource "aws_vpc_security_group_egress_rule" "out" {
  security_group_id = aws_security_group.nodes.id
  cidr_ipv4         = "0.0.0.0/0"
  ip_protocol       = "-1"
  description       = "Images, packages, S3 and the EC2 API"
}

resource "aws_security_group" "head" {
  name        = "${var.name}-head"
  description = "The head: SSH from operators"
  vpc_id      = aws_vpc.cluster.id
  tags        = { Name = "${var.name}-head" }

  lifecycle {
    create_before_destroy = true
  }
}

resource "aws_vpc_security_group_ingress_rule" "operators" {
  for_each          = toset(var.operator_cidrs)
  security_group_id = aws_security_group.head.id
  cidr_ipv4         = each.value
  ip_protocol       = "tcp"
  from_port         = 22
  to_port           = 22
  description       = "SSH, and the dashboard through it"
}
