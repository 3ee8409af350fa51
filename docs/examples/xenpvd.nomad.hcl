# One guest as a job of Nomad; docs/orchestrators.md says what its client needs.
job "web1" {
  type = "service"

  group "guest" {
    count = 1 # an image has one writer

    # the image is on this client: what does not run here runs nowhere
    reschedule {
      attempts  = 0
      unlimited = false
    }

    # for a daemon that has ended; a guest that reboots or crashes is its daemon's affair
    restart {
      attempts = 5
      interval = "5m"
      delay    = "2s"
      mode     = "fail"
    }

    task "xenpvd" {
      driver = "raw_exec"

      # the guest is asked to shut down, and has --stop-timeout for it
      kill_signal  = "SIGTERM"
      kill_timeout = "90s"

      config {
        command = "/opt/xenpvd/bin/xenpvd"
        args = [
          "--config", "${NOMAD_TASK_DIR}/web1.toml",
          "--run-dir", "/run/xenpvd",
          "--stop-timeout", "60",
        ]
      }

      template {
        destination = "local/web1.toml"
        change_mode = "noop" # it counts at the next start
        data        = <<-END
          memory = 512
          kernel = "/srv/guests/vmlinuz"
          ramdisk = "/srv/guests/initrd.gz"
          cmdline = "console=hvc0"
          disk = [ { vdev = "xvda", target = "/srv/guests/web1.img" } ]
          ready = { when = "console:login:" }
        END
      }

      resources {
        cpu    = 1000
        memory = 768 # the guest's, and the daemon's own
      }

      service {
        name     = "web1"
        provider = "consul"

        # no TCP port, so no "http" check; to Consul a 1 is a warning, and xenpvctl's for a guest that has crashed
        check {
          name     = "ready"
          type     = "script"
          command  = "/bin/sh"
          args     = ["-c", "/opt/xenpvd/bin/xenpvctl --run-dir /run/xenpvd call web1 guest.wait for=ready timeout=1 || exit 2"]
          interval = "10s"
          timeout  = "10s"
        }
      }
    }
  }
}
