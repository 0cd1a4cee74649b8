# Print an optspec for argparse to handle cmd's options that are independent of any subcommand.
function __fish_vesper_global_optspecs
    string join \n socket= h/help V/version
end

function __fish_vesper_needs_command
    # Figure out if the current invocation already has a command.
    set -l cmd (commandline -opc)
    set -e cmd[1]
    argparse -s (__fish_vesper_global_optspecs) -- $cmd 2>/dev/null
    or return
    if set -q argv[1]
        # Also print the command, so this can be used to figure out what it is.
        echo $argv[1]
        return 1
    end
    return 0
end

function __fish_vesper_using_subcommand
    set -l cmd (__fish_vesper_needs_command)
    test -z "$cmd"
    and return 1
    contains -- $cmd[1] $argv
end

complete -c vesper -n "__fish_vesper_needs_command" -l socket -d 'The control socket, or that of a machine [default: $VESPER_SOCKET, else the daemon\'s own]' -r -F
complete -c vesper -n "__fish_vesper_needs_command" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c vesper -n "__fish_vesper_needs_command" -s V -l version -d 'Print version'
complete -c vesper -n "__fish_vesper_needs_command" -f -a "sa" -d 'Security associations, in the words of `ip xfrm state`'
complete -c vesper -n "__fish_vesper_needs_command" -f -a "policy" -d 'Policies, in the words of `ip xfrm policy`'
complete -c vesper -n "__fish_vesper_needs_command" -f -a "vm" -d 'Virtual machines'
complete -c vesper -n "__fish_vesper_needs_command" -f -a "switch" -d 'The NIC switches of the adapters, with their virtual functions'
complete -c vesper -n "__fish_vesper_needs_command" -f -a "port" -d 'Ports of machines and uplinks'
complete -c vesper -n "__fish_vesper_needs_command" -f -a "adapter" -d 'What the adapters can do, and why not'
complete -c vesper -n "__fish_vesper_needs_command" -f -a "stat" -d 'Counters'
complete -c vesper -n "__fish_vesper_needs_command" -f -a "events" -d 'What happens, as it happens'
complete -c vesper -n "__fish_vesper_needs_command" -f -a "top" -d 'A live view of machines and workers'
complete -c vesper -n "__fish_vesper_needs_command" -f -a "verify" -d 'Checks test vectors and captures (vesper-verify)'
complete -c vesper -n "__fish_vesper_needs_command" -f -a "doctor" -d 'What is wrong here, and how to mend it'
complete -c vesper -n "__fish_vesper_needs_command" -f -a "reload" -d 'Puts the configuration in force as it is now, as a whole or not at all'
complete -c vesper -n "__fish_vesper_needs_command" -f -a "completions" -d 'Prints the completions of a shell'
complete -c vesper -n "__fish_vesper_needs_command" -f -a "man" -d 'Prints the manual page, or writes those of all commands'
complete -c vesper -n "__fish_vesper_needs_command" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c vesper -n "__fish_vesper_using_subcommand sa; and not __fish_seen_subcommand_from add update del delete flush deleteall list show get monitor import help" -l socket -d 'The control socket, or that of a machine [default: $VESPER_SOCKET, else the daemon\'s own]' -r -F
complete -c vesper -n "__fish_vesper_using_subcommand sa; and not __fish_seen_subcommand_from add update del delete flush deleteall list show get monitor import help" -s h -l help -d 'Print help'
complete -c vesper -n "__fish_vesper_using_subcommand sa; and not __fish_seen_subcommand_from add update del delete flush deleteall list show get monitor import help" -f -a "add" -d 'Add one: [host H] [vm V] src A dst B proto esp spi N mode tunnel aead NAME KEY BITS ...'
complete -c vesper -n "__fish_vesper_using_subcommand sa; and not __fish_seen_subcommand_from add update del delete flush deleteall list show get monitor import help" -f -a "update" -d 'Change the limits of one; all other words have to be the same'
complete -c vesper -n "__fish_vesper_using_subcommand sa; and not __fish_seen_subcommand_from add update del delete flush deleteall list show get monitor import help" -f -a "del" -d 'Delete the one that these words name'
complete -c vesper -n "__fish_vesper_using_subcommand sa; and not __fish_seen_subcommand_from add update del delete flush deleteall list show get monitor import help" -f -a "delete" -d 'Delete the one that these words name'
complete -c vesper -n "__fish_vesper_using_subcommand sa; and not __fish_seen_subcommand_from add update del delete flush deleteall list show get monitor import help" -f -a "flush" -d 'Delete all that these words name; without words all'
complete -c vesper -n "__fish_vesper_using_subcommand sa; and not __fish_seen_subcommand_from add update del delete flush deleteall list show get monitor import help" -f -a "deleteall" -d 'Delete all that these words name; without words all'
complete -c vesper -n "__fish_vesper_using_subcommand sa; and not __fish_seen_subcommand_from add update del delete flush deleteall list show get monitor import help" -f -a "list" -d 'List those that these words name; without words all'
complete -c vesper -n "__fish_vesper_using_subcommand sa; and not __fish_seen_subcommand_from add update del delete flush deleteall list show get monitor import help" -f -a "show" -d 'Tell everything about the one that these words name'
complete -c vesper -n "__fish_vesper_using_subcommand sa; and not __fish_seen_subcommand_from add update del delete flush deleteall list show get monitor import help" -f -a "get" -d 'Tell everything about the one that these words name'
complete -c vesper -n "__fish_vesper_using_subcommand sa; and not __fish_seen_subcommand_from add update del delete flush deleteall list show get monitor import help" -f -a "monitor" -d 'Tell what happens to associations, as it happens'
complete -c vesper -n "__fish_vesper_using_subcommand sa; and not __fish_seen_subcommand_from add update del delete flush deleteall list show get monitor import help" -f -a "import" -d 'Add those of a file of `ip xfrm state add` lines, all or none'
complete -c vesper -n "__fish_vesper_using_subcommand sa; and not __fish_seen_subcommand_from add update del delete flush deleteall list show get monitor import help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c vesper -n "__fish_vesper_using_subcommand sa; and __fish_seen_subcommand_from add" -l socket -d 'The control socket, or that of a machine [default: $VESPER_SOCKET, else the daemon\'s own]' -r -F
complete -c vesper -n "__fish_vesper_using_subcommand sa; and __fish_seen_subcommand_from add" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c vesper -n "__fish_vesper_using_subcommand sa; and __fish_seen_subcommand_from update" -l socket -d 'The control socket, or that of a machine [default: $VESPER_SOCKET, else the daemon\'s own]' -r -F
complete -c vesper -n "__fish_vesper_using_subcommand sa; and __fish_seen_subcommand_from update" -s h -l help -d 'Print help'
complete -c vesper -n "__fish_vesper_using_subcommand sa; and __fish_seen_subcommand_from del" -l socket -d 'The control socket, or that of a machine [default: $VESPER_SOCKET, else the daemon\'s own]' -r -F
complete -c vesper -n "__fish_vesper_using_subcommand sa; and __fish_seen_subcommand_from del" -s h -l help -d 'Print help'
complete -c vesper -n "__fish_vesper_using_subcommand sa; and __fish_seen_subcommand_from delete" -l socket -d 'The control socket, or that of a machine [default: $VESPER_SOCKET, else the daemon\'s own]' -r -F
complete -c vesper -n "__fish_vesper_using_subcommand sa; and __fish_seen_subcommand_from delete" -s h -l help -d 'Print help'
complete -c vesper -n "__fish_vesper_using_subcommand sa; and __fish_seen_subcommand_from flush" -l socket -d 'The control socket, or that of a machine [default: $VESPER_SOCKET, else the daemon\'s own]' -r -F
complete -c vesper -n "__fish_vesper_using_subcommand sa; and __fish_seen_subcommand_from flush" -s h -l help -d 'Print help'
complete -c vesper -n "__fish_vesper_using_subcommand sa; and __fish_seen_subcommand_from deleteall" -l socket -d 'The control socket, or that of a machine [default: $VESPER_SOCKET, else the daemon\'s own]' -r -F
complete -c vesper -n "__fish_vesper_using_subcommand sa; and __fish_seen_subcommand_from deleteall" -s h -l help -d 'Print help'
complete -c vesper -n "__fish_vesper_using_subcommand sa; and __fish_seen_subcommand_from list" -l socket -d 'The control socket, or that of a machine [default: $VESPER_SOCKET, else the daemon\'s own]' -r -F
complete -c vesper -n "__fish_vesper_using_subcommand sa; and __fish_seen_subcommand_from list" -l json -d 'Print JSON'
complete -c vesper -n "__fish_vesper_using_subcommand sa; and __fish_seen_subcommand_from list" -l xfrm -l raw -d 'As `ip -s xfrm state` prints them'
complete -c vesper -n "__fish_vesper_using_subcommand sa; and __fish_seen_subcommand_from list" -l show-keys -d 'Print keys'
complete -c vesper -n "__fish_vesper_using_subcommand sa; and __fish_seen_subcommand_from list" -s h -l help -d 'Print help'
complete -c vesper -n "__fish_vesper_using_subcommand sa; and __fish_seen_subcommand_from show" -l socket -d 'The control socket, or that of a machine [default: $VESPER_SOCKET, else the daemon\'s own]' -r -F
complete -c vesper -n "__fish_vesper_using_subcommand sa; and __fish_seen_subcommand_from show" -l json -d 'Print JSON'
complete -c vesper -n "__fish_vesper_using_subcommand sa; and __fish_seen_subcommand_from show" -l show-keys -d 'Print its keys'
complete -c vesper -n "__fish_vesper_using_subcommand sa; and __fish_seen_subcommand_from show" -s h -l help -d 'Print help'
complete -c vesper -n "__fish_vesper_using_subcommand sa; and __fish_seen_subcommand_from get" -l socket -d 'The control socket, or that of a machine [default: $VESPER_SOCKET, else the daemon\'s own]' -r -F
complete -c vesper -n "__fish_vesper_using_subcommand sa; and __fish_seen_subcommand_from get" -l json -d 'Print JSON'
complete -c vesper -n "__fish_vesper_using_subcommand sa; and __fish_seen_subcommand_from get" -l show-keys -d 'Print its keys'
complete -c vesper -n "__fish_vesper_using_subcommand sa; and __fish_seen_subcommand_from get" -s h -l help -d 'Print help'
complete -c vesper -n "__fish_vesper_using_subcommand sa; and __fish_seen_subcommand_from monitor" -l socket -d 'The control socket, or that of a machine [default: $VESPER_SOCKET, else the daemon\'s own]' -r -F
complete -c vesper -n "__fish_vesper_using_subcommand sa; and __fish_seen_subcommand_from monitor" -l json -d 'Print JSON'
complete -c vesper -n "__fish_vesper_using_subcommand sa; and __fish_seen_subcommand_from monitor" -s h -l help -d 'Print help'
complete -c vesper -n "__fish_vesper_using_subcommand sa; and __fish_seen_subcommand_from import" -l host -d 'The host of lines that name neither host nor vm' -r
complete -c vesper -n "__fish_vesper_using_subcommand sa; and __fish_seen_subcommand_from import" -l vm -d 'The machine of lines that name neither host nor vm' -r
complete -c vesper -n "__fish_vesper_using_subcommand sa; and __fish_seen_subcommand_from import" -l socket -d 'The control socket, or that of a machine [default: $VESPER_SOCKET, else the daemon\'s own]' -r -F
complete -c vesper -n "__fish_vesper_using_subcommand sa; and __fish_seen_subcommand_from import" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c vesper -n "__fish_vesper_using_subcommand sa; and __fish_seen_subcommand_from help" -f -a "add" -d 'Add one: [host H] [vm V] src A dst B proto esp spi N mode tunnel aead NAME KEY BITS ...'
complete -c vesper -n "__fish_vesper_using_subcommand sa; and __fish_seen_subcommand_from help" -f -a "update" -d 'Change the limits of one; all other words have to be the same'
complete -c vesper -n "__fish_vesper_using_subcommand sa; and __fish_seen_subcommand_from help" -f -a "del" -d 'Delete the one that these words name'
complete -c vesper -n "__fish_vesper_using_subcommand sa; and __fish_seen_subcommand_from help" -f -a "flush" -d 'Delete all that these words name; without words all'
complete -c vesper -n "__fish_vesper_using_subcommand sa; and __fish_seen_subcommand_from help" -f -a "list" -d 'List those that these words name; without words all'
complete -c vesper -n "__fish_vesper_using_subcommand sa; and __fish_seen_subcommand_from help" -f -a "show" -d 'Tell everything about the one that these words name'
complete -c vesper -n "__fish_vesper_using_subcommand sa; and __fish_seen_subcommand_from help" -f -a "monitor" -d 'Tell what happens to associations, as it happens'
complete -c vesper -n "__fish_vesper_using_subcommand sa; and __fish_seen_subcommand_from help" -f -a "import" -d 'Add those of a file of `ip xfrm state add` lines, all or none'
complete -c vesper -n "__fish_vesper_using_subcommand sa; and __fish_seen_subcommand_from help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c vesper -n "__fish_vesper_using_subcommand policy; and not __fish_seen_subcommand_from add update del delete flush list show get monitor import help" -l socket -d 'The control socket, or that of a machine [default: $VESPER_SOCKET, else the daemon\'s own]' -r -F
complete -c vesper -n "__fish_vesper_using_subcommand policy; and not __fish_seen_subcommand_from add update del delete flush list show get monitor import help" -s h -l help -d 'Print help'
complete -c vesper -n "__fish_vesper_using_subcommand policy; and not __fish_seen_subcommand_from add update del delete flush list show get monitor import help" -f -a "add" -d 'Add one: vm V src P dst P dir out tmpl src A dst B proto esp reqid N mode tunnel'
complete -c vesper -n "__fish_vesper_using_subcommand policy; and not __fish_seen_subcommand_from add update del delete flush list show get monitor import help" -f -a "update" -d 'Add one in the place of that for the same packets, if there is one'
complete -c vesper -n "__fish_vesper_using_subcommand policy; and not __fish_seen_subcommand_from add update del delete flush list show get monitor import help" -f -a "del" -d 'Delete those that these words name'
complete -c vesper -n "__fish_vesper_using_subcommand policy; and not __fish_seen_subcommand_from add update del delete flush list show get monitor import help" -f -a "delete" -d 'Delete those that these words name'
complete -c vesper -n "__fish_vesper_using_subcommand policy; and not __fish_seen_subcommand_from add update del delete flush list show get monitor import help" -f -a "flush" -d 'Delete all that these words name; without words all'
complete -c vesper -n "__fish_vesper_using_subcommand policy; and not __fish_seen_subcommand_from add update del delete flush list show get monitor import help" -f -a "list" -d 'List those that these words name; without words all'
complete -c vesper -n "__fish_vesper_using_subcommand policy; and not __fish_seen_subcommand_from add update del delete flush list show get monitor import help" -f -a "show" -d 'Tell everything about those that these words name'
complete -c vesper -n "__fish_vesper_using_subcommand policy; and not __fish_seen_subcommand_from add update del delete flush list show get monitor import help" -f -a "get" -d 'Tell everything about those that these words name'
complete -c vesper -n "__fish_vesper_using_subcommand policy; and not __fish_seen_subcommand_from add update del delete flush list show get monitor import help" -f -a "monitor" -d 'Tell when the policies of a machine change, as it happens'
complete -c vesper -n "__fish_vesper_using_subcommand policy; and not __fish_seen_subcommand_from add update del delete flush list show get monitor import help" -f -a "import" -d 'Add those of a file of `ip xfrm policy add` lines, all or none'
complete -c vesper -n "__fish_vesper_using_subcommand policy; and not __fish_seen_subcommand_from add update del delete flush list show get monitor import help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c vesper -n "__fish_vesper_using_subcommand policy; and __fish_seen_subcommand_from add" -l socket -d 'The control socket, or that of a machine [default: $VESPER_SOCKET, else the daemon\'s own]' -r -F
complete -c vesper -n "__fish_vesper_using_subcommand policy; and __fish_seen_subcommand_from add" -s h -l help -d 'Print help'
complete -c vesper -n "__fish_vesper_using_subcommand policy; and __fish_seen_subcommand_from update" -l socket -d 'The control socket, or that of a machine [default: $VESPER_SOCKET, else the daemon\'s own]' -r -F
complete -c vesper -n "__fish_vesper_using_subcommand policy; and __fish_seen_subcommand_from update" -s h -l help -d 'Print help'
complete -c vesper -n "__fish_vesper_using_subcommand policy; and __fish_seen_subcommand_from del" -l socket -d 'The control socket, or that of a machine [default: $VESPER_SOCKET, else the daemon\'s own]' -r -F
complete -c vesper -n "__fish_vesper_using_subcommand policy; and __fish_seen_subcommand_from del" -s h -l help -d 'Print help'
complete -c vesper -n "__fish_vesper_using_subcommand policy; and __fish_seen_subcommand_from delete" -l socket -d 'The control socket, or that of a machine [default: $VESPER_SOCKET, else the daemon\'s own]' -r -F
complete -c vesper -n "__fish_vesper_using_subcommand policy; and __fish_seen_subcommand_from delete" -s h -l help -d 'Print help'
complete -c vesper -n "__fish_vesper_using_subcommand policy; and __fish_seen_subcommand_from flush" -l socket -d 'The control socket, or that of a machine [default: $VESPER_SOCKET, else the daemon\'s own]' -r -F
complete -c vesper -n "__fish_vesper_using_subcommand policy; and __fish_seen_subcommand_from flush" -s h -l help -d 'Print help'
complete -c vesper -n "__fish_vesper_using_subcommand policy; and __fish_seen_subcommand_from list" -l socket -d 'The control socket, or that of a machine [default: $VESPER_SOCKET, else the daemon\'s own]' -r -F
complete -c vesper -n "__fish_vesper_using_subcommand policy; and __fish_seen_subcommand_from list" -l json -d 'Print JSON'
complete -c vesper -n "__fish_vesper_using_subcommand policy; and __fish_seen_subcommand_from list" -l xfrm -l raw -d 'As `ip xfrm policy` prints them'
complete -c vesper -n "__fish_vesper_using_subcommand policy; and __fish_seen_subcommand_from list" -s h -l help -d 'Print help'
complete -c vesper -n "__fish_vesper_using_subcommand policy; and __fish_seen_subcommand_from show" -l socket -d 'The control socket, or that of a machine [default: $VESPER_SOCKET, else the daemon\'s own]' -r -F
complete -c vesper -n "__fish_vesper_using_subcommand policy; and __fish_seen_subcommand_from show" -l json -d 'Print JSON'
complete -c vesper -n "__fish_vesper_using_subcommand policy; and __fish_seen_subcommand_from show" -s h -l help -d 'Print help'
complete -c vesper -n "__fish_vesper_using_subcommand policy; and __fish_seen_subcommand_from get" -l socket -d 'The control socket, or that of a machine [default: $VESPER_SOCKET, else the daemon\'s own]' -r -F
complete -c vesper -n "__fish_vesper_using_subcommand policy; and __fish_seen_subcommand_from get" -l json -d 'Print JSON'
complete -c vesper -n "__fish_vesper_using_subcommand policy; and __fish_seen_subcommand_from get" -s h -l help -d 'Print help'
complete -c vesper -n "__fish_vesper_using_subcommand policy; and __fish_seen_subcommand_from monitor" -l socket -d 'The control socket, or that of a machine [default: $VESPER_SOCKET, else the daemon\'s own]' -r -F
complete -c vesper -n "__fish_vesper_using_subcommand policy; and __fish_seen_subcommand_from monitor" -l json -d 'Print JSON'
complete -c vesper -n "__fish_vesper_using_subcommand policy; and __fish_seen_subcommand_from monitor" -s h -l help -d 'Print help'
complete -c vesper -n "__fish_vesper_using_subcommand policy; and __fish_seen_subcommand_from import" -l socket -d 'The control socket, or that of a machine [default: $VESPER_SOCKET, else the daemon\'s own]' -r -F
complete -c vesper -n "__fish_vesper_using_subcommand policy; and __fish_seen_subcommand_from import" -s h -l help -d 'Print help'
complete -c vesper -n "__fish_vesper_using_subcommand policy; and __fish_seen_subcommand_from help" -f -a "add" -d 'Add one: vm V src P dst P dir out tmpl src A dst B proto esp reqid N mode tunnel'
complete -c vesper -n "__fish_vesper_using_subcommand policy; and __fish_seen_subcommand_from help" -f -a "update" -d 'Add one in the place of that for the same packets, if there is one'
complete -c vesper -n "__fish_vesper_using_subcommand policy; and __fish_seen_subcommand_from help" -f -a "del" -d 'Delete those that these words name'
complete -c vesper -n "__fish_vesper_using_subcommand policy; and __fish_seen_subcommand_from help" -f -a "flush" -d 'Delete all that these words name; without words all'
complete -c vesper -n "__fish_vesper_using_subcommand policy; and __fish_seen_subcommand_from help" -f -a "list" -d 'List those that these words name; without words all'
complete -c vesper -n "__fish_vesper_using_subcommand policy; and __fish_seen_subcommand_from help" -f -a "show" -d 'Tell everything about those that these words name'
complete -c vesper -n "__fish_vesper_using_subcommand policy; and __fish_seen_subcommand_from help" -f -a "monitor" -d 'Tell when the policies of a machine change, as it happens'
complete -c vesper -n "__fish_vesper_using_subcommand policy; and __fish_seen_subcommand_from help" -f -a "import" -d 'Add those of a file of `ip xfrm policy add` lines, all or none'
complete -c vesper -n "__fish_vesper_using_subcommand policy; and __fish_seen_subcommand_from help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c vesper -n "__fish_vesper_using_subcommand vm; and not __fish_seen_subcommand_from list show add set move del delete help" -l socket -d 'The control socket, or that of a machine [default: $VESPER_SOCKET, else the daemon\'s own]' -r -F
complete -c vesper -n "__fish_vesper_using_subcommand vm; and not __fish_seen_subcommand_from list show add set move del delete help" -s h -l help -d 'Print help'
complete -c vesper -n "__fish_vesper_using_subcommand vm; and not __fish_seen_subcommand_from list show add set move del delete help" -f -a "list" -d 'List the machines'
complete -c vesper -n "__fish_vesper_using_subcommand vm; and not __fish_seen_subcommand_from list show add set move del delete help" -f -a "show" -d 'Tell everything about one'
complete -c vesper -n "__fish_vesper_using_subcommand vm; and not __fish_seen_subcommand_from list show add set move del delete help" -f -a "add" -d 'Add one'
complete -c vesper -n "__fish_vesper_using_subcommand vm; and not __fish_seen_subcommand_from list show add set move del delete help" -f -a "set" -d 'Change the limits of one while its packets pass'
complete -c vesper -n "__fish_vesper_using_subcommand vm; and not __fish_seen_subcommand_from list show add set move del delete help" -f -a "move" -d 'Move one behind another port; its associations stay'
complete -c vesper -n "__fish_vesper_using_subcommand vm; and not __fish_seen_subcommand_from list show add set move del delete help" -f -a "del" -d 'Remove one with its port, policies and associations'
complete -c vesper -n "__fish_vesper_using_subcommand vm; and not __fish_seen_subcommand_from list show add set move del delete help" -f -a "delete" -d 'Remove one with its port, policies and associations'
complete -c vesper -n "__fish_vesper_using_subcommand vm; and not __fish_seen_subcommand_from list show add set move del delete help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c vesper -n "__fish_vesper_using_subcommand vm; and __fish_seen_subcommand_from list" -l socket -d 'The control socket, or that of a machine [default: $VESPER_SOCKET, else the daemon\'s own]' -r -F
complete -c vesper -n "__fish_vesper_using_subcommand vm; and __fish_seen_subcommand_from list" -l json -d 'Print JSON'
complete -c vesper -n "__fish_vesper_using_subcommand vm; and __fish_seen_subcommand_from list" -s h -l help -d 'Print help'
complete -c vesper -n "__fish_vesper_using_subcommand vm; and __fish_seen_subcommand_from show" -l socket -d 'The control socket, or that of a machine [default: $VESPER_SOCKET, else the daemon\'s own]' -r -F
complete -c vesper -n "__fish_vesper_using_subcommand vm; and __fish_seen_subcommand_from show" -l json -d 'Print JSON'
complete -c vesper -n "__fish_vesper_using_subcommand vm; and __fish_seen_subcommand_from show" -s h -l help -d 'Print help'
complete -c vesper -n "__fish_vesper_using_subcommand vm; and __fish_seen_subcommand_from add" -l mac -d 'Its Ethernet address' -r
complete -c vesper -n "__fish_vesper_using_subcommand vm; and __fish_seen_subcommand_from add" -l host -d 'The host; may be left out if there is only one' -r
complete -c vesper -n "__fish_vesper_using_subcommand vm; and __fish_seen_subcommand_from add" -l vlan -d 'Its VLAN' -r
complete -c vesper -n "__fish_vesper_using_subcommand vm; and __fish_seen_subcommand_from add" -l port -d 'What it is behind, as a table of the configuration in TOML, such as \'loopback\'' -r
complete -c vesper -n "__fish_vesper_using_subcommand vm; and __fish_seen_subcommand_from add" -l sa-limit -d 'Associations that it may have' -r
complete -c vesper -n "__fish_vesper_using_subcommand vm; and __fish_seen_subcommand_from add" -l ipsec-offload-limit -d 'Associations that may be offloaded; 0 is none' -r
complete -c vesper -n "__fish_vesper_using_subcommand vm; and __fish_seen_subcommand_from add" -l vmq-weight -d 'Share of a receive queue and of the processors, 1 to 100; 0 is no queue' -r
complete -c vesper -n "__fish_vesper_using_subcommand vm; and __fish_seen_subcommand_from add" -l iov-weight -d 'The wish for a virtual function, 1 to 100; 0 is none' -r
complete -c vesper -n "__fish_vesper_using_subcommand vm; and __fish_seen_subcommand_from add" -l socket -d 'The control socket, or that of a machine [default: $VESPER_SOCKET, else the daemon\'s own]' -r -F
complete -c vesper -n "__fish_vesper_using_subcommand vm; and __fish_seen_subcommand_from add" -l clear-text -d 'Packets that no policy matches pass as they are'
complete -c vesper -n "__fish_vesper_using_subcommand vm; and __fish_seen_subcommand_from add" -s h -l help -d 'Print help'
complete -c vesper -n "__fish_vesper_using_subcommand vm; and __fish_seen_subcommand_from set" -l sa-limit -d 'Associations that it may have' -r
complete -c vesper -n "__fish_vesper_using_subcommand vm; and __fish_seen_subcommand_from set" -l ipsec-offload-limit -d 'Associations that may be offloaded; 0 is none' -r
complete -c vesper -n "__fish_vesper_using_subcommand vm; and __fish_seen_subcommand_from set" -l processor -d 'The processor of the adapter that serves it' -r
complete -c vesper -n "__fish_vesper_using_subcommand vm; and __fish_seen_subcommand_from set" -l require-protection -d 'Whether packets that no policy matches are discarded' -r -f -a "true\t''
false\t''"
complete -c vesper -n "__fish_vesper_using_subcommand vm; and __fish_seen_subcommand_from set" -l socket -d 'The control socket, or that of a machine [default: $VESPER_SOCKET, else the daemon\'s own]' -r -F
complete -c vesper -n "__fish_vesper_using_subcommand vm; and __fish_seen_subcommand_from set" -s h -l help -d 'Print help'
complete -c vesper -n "__fish_vesper_using_subcommand vm; and __fish_seen_subcommand_from move" -l socket -d 'The control socket, or that of a machine [default: $VESPER_SOCKET, else the daemon\'s own]' -r -F
complete -c vesper -n "__fish_vesper_using_subcommand vm; and __fish_seen_subcommand_from move" -s h -l help -d 'Print help'
complete -c vesper -n "__fish_vesper_using_subcommand vm; and __fish_seen_subcommand_from del" -l socket -d 'The control socket, or that of a machine [default: $VESPER_SOCKET, else the daemon\'s own]' -r -F
complete -c vesper -n "__fish_vesper_using_subcommand vm; and __fish_seen_subcommand_from del" -s h -l help -d 'Print help'
complete -c vesper -n "__fish_vesper_using_subcommand vm; and __fish_seen_subcommand_from delete" -l socket -d 'The control socket, or that of a machine [default: $VESPER_SOCKET, else the daemon\'s own]' -r -F
complete -c vesper -n "__fish_vesper_using_subcommand vm; and __fish_seen_subcommand_from delete" -s h -l help -d 'Print help'
complete -c vesper -n "__fish_vesper_using_subcommand vm; and __fish_seen_subcommand_from help" -f -a "list" -d 'List the machines'
complete -c vesper -n "__fish_vesper_using_subcommand vm; and __fish_seen_subcommand_from help" -f -a "show" -d 'Tell everything about one'
complete -c vesper -n "__fish_vesper_using_subcommand vm; and __fish_seen_subcommand_from help" -f -a "add" -d 'Add one'
complete -c vesper -n "__fish_vesper_using_subcommand vm; and __fish_seen_subcommand_from help" -f -a "set" -d 'Change the limits of one while its packets pass'
complete -c vesper -n "__fish_vesper_using_subcommand vm; and __fish_seen_subcommand_from help" -f -a "move" -d 'Move one behind another port; its associations stay'
complete -c vesper -n "__fish_vesper_using_subcommand vm; and __fish_seen_subcommand_from help" -f -a "del" -d 'Remove one with its port, policies and associations'
complete -c vesper -n "__fish_vesper_using_subcommand vm; and __fish_seen_subcommand_from help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c vesper -n "__fish_vesper_using_subcommand switch; and not __fish_seen_subcommand_from list create help" -l socket -d 'The control socket, or that of a machine [default: $VESPER_SOCKET, else the daemon\'s own]' -r -F
complete -c vesper -n "__fish_vesper_using_subcommand switch; and not __fish_seen_subcommand_from list create help" -s h -l help -d 'Print help'
complete -c vesper -n "__fish_vesper_using_subcommand switch; and not __fish_seen_subcommand_from list create help" -f -a "list" -d 'The NIC switches and their virtual functions'
complete -c vesper -n "__fish_vesper_using_subcommand switch; and not __fish_seen_subcommand_from list create help" -f -a "create" -d 'Make the NIC switch of an adapter: once, and before its first machine'
complete -c vesper -n "__fish_vesper_using_subcommand switch; and not __fish_seen_subcommand_from list create help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c vesper -n "__fish_vesper_using_subcommand switch; and __fish_seen_subcommand_from list" -l socket -d 'The control socket, or that of a machine [default: $VESPER_SOCKET, else the daemon\'s own]' -r -F
complete -c vesper -n "__fish_vesper_using_subcommand switch; and __fish_seen_subcommand_from list" -l json -d 'Print JSON'
complete -c vesper -n "__fish_vesper_using_subcommand switch; and __fish_seen_subcommand_from list" -s h -l help -d 'Print help'
complete -c vesper -n "__fish_vesper_using_subcommand switch; and __fish_seen_subcommand_from create" -l queue-pairs -d 'Queue pairs of the default port' -r
complete -c vesper -n "__fish_vesper_using_subcommand switch; and __fish_seen_subcommand_from create" -l host -d 'The host; may be left out if there is only one' -r
complete -c vesper -n "__fish_vesper_using_subcommand switch; and __fish_seen_subcommand_from create" -l socket -d 'The control socket, or that of a machine [default: $VESPER_SOCKET, else the daemon\'s own]' -r -F
complete -c vesper -n "__fish_vesper_using_subcommand switch; and __fish_seen_subcommand_from create" -s h -l help -d 'Print help'
complete -c vesper -n "__fish_vesper_using_subcommand switch; and __fish_seen_subcommand_from help" -f -a "list" -d 'The NIC switches and their virtual functions'
complete -c vesper -n "__fish_vesper_using_subcommand switch; and __fish_seen_subcommand_from help" -f -a "create" -d 'Make the NIC switch of an adapter: once, and before its first machine'
complete -c vesper -n "__fish_vesper_using_subcommand switch; and __fish_seen_subcommand_from help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c vesper -n "__fish_vesper_using_subcommand port; and not __fish_seen_subcommand_from list stat help" -l socket -d 'The control socket, or that of a machine [default: $VESPER_SOCKET, else the daemon\'s own]' -r -F
complete -c vesper -n "__fish_vesper_using_subcommand port; and not __fish_seen_subcommand_from list stat help" -s h -l help -d 'Print help'
complete -c vesper -n "__fish_vesper_using_subcommand port; and not __fish_seen_subcommand_from list stat help" -f -a "list" -d 'List the ports'
complete -c vesper -n "__fish_vesper_using_subcommand port; and not __fish_seen_subcommand_from list stat help" -f -a "stat" -d 'The counters of one port, as `ethtool -S` prints them'
complete -c vesper -n "__fish_vesper_using_subcommand port; and not __fish_seen_subcommand_from list stat help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c vesper -n "__fish_vesper_using_subcommand port; and __fish_seen_subcommand_from list" -l socket -d 'The control socket, or that of a machine [default: $VESPER_SOCKET, else the daemon\'s own]' -r -F
complete -c vesper -n "__fish_vesper_using_subcommand port; and __fish_seen_subcommand_from list" -l json -d 'Print JSON'
complete -c vesper -n "__fish_vesper_using_subcommand port; and __fish_seen_subcommand_from list" -s h -l help -d 'Print help'
complete -c vesper -n "__fish_vesper_using_subcommand port; and __fish_seen_subcommand_from stat" -l socket -d 'The control socket, or that of a machine [default: $VESPER_SOCKET, else the daemon\'s own]' -r -F
complete -c vesper -n "__fish_vesper_using_subcommand port; and __fish_seen_subcommand_from stat" -l json -d 'Print JSON'
complete -c vesper -n "__fish_vesper_using_subcommand port; and __fish_seen_subcommand_from stat" -s h -l help -d 'Print help'
complete -c vesper -n "__fish_vesper_using_subcommand port; and __fish_seen_subcommand_from help" -f -a "list" -d 'List the ports'
complete -c vesper -n "__fish_vesper_using_subcommand port; and __fish_seen_subcommand_from help" -f -a "stat" -d 'The counters of one port, as `ethtool -S` prints them'
complete -c vesper -n "__fish_vesper_using_subcommand port; and __fish_seen_subcommand_from help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c vesper -n "__fish_vesper_using_subcommand adapter; and not __fish_seen_subcommand_from list why-not help" -l socket -d 'The control socket, or that of a machine [default: $VESPER_SOCKET, else the daemon\'s own]' -r -F
complete -c vesper -n "__fish_vesper_using_subcommand adapter; and not __fish_seen_subcommand_from list why-not help" -s h -l help -d 'Print help'
complete -c vesper -n "__fish_vesper_using_subcommand adapter; and not __fish_seen_subcommand_from list why-not help" -f -a "list" -d 'What the adapters have, can do, and do at present'
complete -c vesper -n "__fish_vesper_using_subcommand adapter; and not __fish_seen_subcommand_from list why-not help" -f -a "why-not" -d 'Whether an adapter would take an association with these words, or every reason why not'
complete -c vesper -n "__fish_vesper_using_subcommand adapter; and not __fish_seen_subcommand_from list why-not help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c vesper -n "__fish_vesper_using_subcommand adapter; and __fish_seen_subcommand_from list" -l socket -d 'The control socket, or that of a machine [default: $VESPER_SOCKET, else the daemon\'s own]' -r -F
complete -c vesper -n "__fish_vesper_using_subcommand adapter; and __fish_seen_subcommand_from list" -l json -d 'Print JSON'
complete -c vesper -n "__fish_vesper_using_subcommand adapter; and __fish_seen_subcommand_from list" -s h -l help -d 'Print help'
complete -c vesper -n "__fish_vesper_using_subcommand adapter; and __fish_seen_subcommand_from why-not" -l socket -d 'The control socket, or that of a machine [default: $VESPER_SOCKET, else the daemon\'s own]' -r -F
complete -c vesper -n "__fish_vesper_using_subcommand adapter; and __fish_seen_subcommand_from why-not" -l json -d 'Print JSON'
complete -c vesper -n "__fish_vesper_using_subcommand adapter; and __fish_seen_subcommand_from why-not" -s h -l help -d 'Print help'
complete -c vesper -n "__fish_vesper_using_subcommand adapter; and __fish_seen_subcommand_from help" -f -a "list" -d 'What the adapters have, can do, and do at present'
complete -c vesper -n "__fish_vesper_using_subcommand adapter; and __fish_seen_subcommand_from help" -f -a "why-not" -d 'Whether an adapter would take an association with these words, or every reason why not'
complete -c vesper -n "__fish_vesper_using_subcommand adapter; and __fish_seen_subcommand_from help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c vesper -n "__fish_vesper_using_subcommand stat" -l socket -d 'The control socket, or that of a machine [default: $VESPER_SOCKET, else the daemon\'s own]' -r -F
complete -c vesper -n "__fish_vesper_using_subcommand stat" -l json -d 'Print JSON'
complete -c vesper -n "__fish_vesper_using_subcommand stat" -l xfrm -d 'All drops, in the layout of /proc/net/xfrm_stat'
complete -c vesper -n "__fish_vesper_using_subcommand stat" -s h -l help -d 'Print help'
complete -c vesper -n "__fish_vesper_using_subcommand events" -l count -d 'End after this many events' -r
complete -c vesper -n "__fish_vesper_using_subcommand events" -l socket -d 'The control socket, or that of a machine [default: $VESPER_SOCKET, else the daemon\'s own]' -r -F
complete -c vesper -n "__fish_vesper_using_subcommand events" -l json -d 'Print JSON'
complete -c vesper -n "__fish_vesper_using_subcommand events" -s h -l help -d 'Print help'
complete -c vesper -n "__fish_vesper_using_subcommand top" -l socket -d 'The control socket, or that of a machine [default: $VESPER_SOCKET, else the daemon\'s own]' -r -F
complete -c vesper -n "__fish_vesper_using_subcommand top" -s h -l help -d 'Print help'
complete -c vesper -n "__fish_vesper_using_subcommand verify; and not __fish_seen_subcommand_from pcap encap help" -l impl -d 'Run on this implementation only; may be given several times' -r
complete -c vesper -n "__fish_vesper_using_subcommand verify; and not __fish_seen_subcommand_from pcap encap help" -l socket -d 'The control socket, or that of a machine [default: $VESPER_SOCKET, else the daemon\'s own]' -r -F
complete -c vesper -n "__fish_vesper_using_subcommand verify; and not __fish_seen_subcommand_from pcap encap help" -l list -d 'List implementations and sources instead of running'
complete -c vesper -n "__fish_vesper_using_subcommand verify; and not __fish_seen_subcommand_from pcap encap help" -l json -d 'Print JSON'
complete -c vesper -n "__fish_vesper_using_subcommand verify; and not __fish_seen_subcommand_from pcap encap help" -s h -l help -d 'Print help'
complete -c vesper -n "__fish_vesper_using_subcommand verify; and not __fish_seen_subcommand_from pcap encap help" -s V -l version -d 'Print version'
complete -c vesper -n "__fish_vesper_using_subcommand verify; and not __fish_seen_subcommand_from pcap encap help" -a "pcap" -d 'Open every ESP packet of a capture'
complete -c vesper -n "__fish_vesper_using_subcommand verify; and not __fish_seen_subcommand_from pcap encap help" -a "encap" -d 'Seal every IP packet of a capture'
complete -c vesper -n "__fish_vesper_using_subcommand verify; and not __fish_seen_subcommand_from pcap encap help" -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c vesper -n "__fish_vesper_using_subcommand verify; and __fish_seen_subcommand_from pcap" -l sa -d 'The associations, as `ip xfrm state add` or Wireshark `esp_sa` lines' -r -F
complete -c vesper -n "__fish_vesper_using_subcommand verify; and __fish_seen_subcommand_from pcap" -l write -d 'Write the inner IP packets to this pcap file' -r -F
complete -c vesper -n "__fish_vesper_using_subcommand verify; and __fish_seen_subcommand_from pcap" -l socket -d 'The control socket, or that of a machine [default: $VESPER_SOCKET, else the daemon\'s own]' -r -F
complete -c vesper -n "__fish_vesper_using_subcommand verify; and __fish_seen_subcommand_from pcap" -l json -d 'Print JSON'
complete -c vesper -n "__fish_vesper_using_subcommand verify; and __fish_seen_subcommand_from pcap" -s h -l help -d 'Print help'
complete -c vesper -n "__fish_vesper_using_subcommand verify; and __fish_seen_subcommand_from encap" -l sa -d 'The associations, as `ip xfrm state add` lines' -r -F
complete -c vesper -n "__fish_vesper_using_subcommand verify; and __fish_seen_subcommand_from encap" -l socket -d 'The control socket, or that of a machine [default: $VESPER_SOCKET, else the daemon\'s own]' -r -F
complete -c vesper -n "__fish_vesper_using_subcommand verify; and __fish_seen_subcommand_from encap" -l json -d 'Print JSON'
complete -c vesper -n "__fish_vesper_using_subcommand verify; and __fish_seen_subcommand_from encap" -s h -l help -d 'Print help'
complete -c vesper -n "__fish_vesper_using_subcommand verify; and __fish_seen_subcommand_from help" -f -a "pcap" -d 'Open every ESP packet of a capture'
complete -c vesper -n "__fish_vesper_using_subcommand verify; and __fish_seen_subcommand_from help" -f -a "encap" -d 'Seal every IP packet of a capture'
complete -c vesper -n "__fish_vesper_using_subcommand verify; and __fish_seen_subcommand_from help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c vesper -n "__fish_vesper_using_subcommand doctor" -l socket -d 'The control socket, or that of a machine [default: $VESPER_SOCKET, else the daemon\'s own]' -r -F
complete -c vesper -n "__fish_vesper_using_subcommand doctor" -l json -d 'Print JSON'
complete -c vesper -n "__fish_vesper_using_subcommand doctor" -s h -l help -d 'Print help'
complete -c vesper -n "__fish_vesper_using_subcommand reload" -l socket -d 'The control socket, or that of a machine [default: $VESPER_SOCKET, else the daemon\'s own]' -r -F
complete -c vesper -n "__fish_vesper_using_subcommand reload" -l check -d 'Only tell what would change'
complete -c vesper -n "__fish_vesper_using_subcommand reload" -l json -d 'Print JSON'
complete -c vesper -n "__fish_vesper_using_subcommand reload" -s h -l help -d 'Print help'
complete -c vesper -n "__fish_vesper_using_subcommand completions" -l socket -d 'The control socket, or that of a machine [default: $VESPER_SOCKET, else the daemon\'s own]' -r -F
complete -c vesper -n "__fish_vesper_using_subcommand completions" -s h -l help -d 'Print help'
complete -c vesper -n "__fish_vesper_using_subcommand man" -l socket -d 'The control socket, or that of a machine [default: $VESPER_SOCKET, else the daemon\'s own]' -r -F
complete -c vesper -n "__fish_vesper_using_subcommand man" -s h -l help -d 'Print help'
complete -c vesper -n "__fish_vesper_using_subcommand help; and not __fish_seen_subcommand_from sa policy vm switch port adapter stat events top verify doctor reload completions man help" -f -a "sa" -d 'Security associations, in the words of `ip xfrm state`'
complete -c vesper -n "__fish_vesper_using_subcommand help; and not __fish_seen_subcommand_from sa policy vm switch port adapter stat events top verify doctor reload completions man help" -f -a "policy" -d 'Policies, in the words of `ip xfrm policy`'
complete -c vesper -n "__fish_vesper_using_subcommand help; and not __fish_seen_subcommand_from sa policy vm switch port adapter stat events top verify doctor reload completions man help" -f -a "vm" -d 'Virtual machines'
complete -c vesper -n "__fish_vesper_using_subcommand help; and not __fish_seen_subcommand_from sa policy vm switch port adapter stat events top verify doctor reload completions man help" -f -a "switch" -d 'The NIC switches of the adapters, with their virtual functions'
complete -c vesper -n "__fish_vesper_using_subcommand help; and not __fish_seen_subcommand_from sa policy vm switch port adapter stat events top verify doctor reload completions man help" -f -a "port" -d 'Ports of machines and uplinks'
complete -c vesper -n "__fish_vesper_using_subcommand help; and not __fish_seen_subcommand_from sa policy vm switch port adapter stat events top verify doctor reload completions man help" -f -a "adapter" -d 'What the adapters can do, and why not'
complete -c vesper -n "__fish_vesper_using_subcommand help; and not __fish_seen_subcommand_from sa policy vm switch port adapter stat events top verify doctor reload completions man help" -f -a "stat" -d 'Counters'
complete -c vesper -n "__fish_vesper_using_subcommand help; and not __fish_seen_subcommand_from sa policy vm switch port adapter stat events top verify doctor reload completions man help" -f -a "events" -d 'What happens, as it happens'
complete -c vesper -n "__fish_vesper_using_subcommand help; and not __fish_seen_subcommand_from sa policy vm switch port adapter stat events top verify doctor reload completions man help" -f -a "top" -d 'A live view of machines and workers'
complete -c vesper -n "__fish_vesper_using_subcommand help; and not __fish_seen_subcommand_from sa policy vm switch port adapter stat events top verify doctor reload completions man help" -f -a "verify" -d 'Checks test vectors and captures (vesper-verify)'
complete -c vesper -n "__fish_vesper_using_subcommand help; and not __fish_seen_subcommand_from sa policy vm switch port adapter stat events top verify doctor reload completions man help" -f -a "doctor" -d 'What is wrong here, and how to mend it'
complete -c vesper -n "__fish_vesper_using_subcommand help; and not __fish_seen_subcommand_from sa policy vm switch port adapter stat events top verify doctor reload completions man help" -f -a "reload" -d 'Puts the configuration in force as it is now, as a whole or not at all'
complete -c vesper -n "__fish_vesper_using_subcommand help; and not __fish_seen_subcommand_from sa policy vm switch port adapter stat events top verify doctor reload completions man help" -f -a "completions" -d 'Prints the completions of a shell'
complete -c vesper -n "__fish_vesper_using_subcommand help; and not __fish_seen_subcommand_from sa policy vm switch port adapter stat events top verify doctor reload completions man help" -f -a "man" -d 'Prints the manual page, or writes those of all commands'
complete -c vesper -n "__fish_vesper_using_subcommand help; and not __fish_seen_subcommand_from sa policy vm switch port adapter stat events top verify doctor reload completions man help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c vesper -n "__fish_vesper_using_subcommand help; and __fish_seen_subcommand_from sa" -f -a "add" -d 'Add one: [host H] [vm V] src A dst B proto esp spi N mode tunnel aead NAME KEY BITS ...'
complete -c vesper -n "__fish_vesper_using_subcommand help; and __fish_seen_subcommand_from sa" -f -a "update" -d 'Change the limits of one; all other words have to be the same'
complete -c vesper -n "__fish_vesper_using_subcommand help; and __fish_seen_subcommand_from sa" -f -a "del" -d 'Delete the one that these words name'
complete -c vesper -n "__fish_vesper_using_subcommand help; and __fish_seen_subcommand_from sa" -f -a "flush" -d 'Delete all that these words name; without words all'
complete -c vesper -n "__fish_vesper_using_subcommand help; and __fish_seen_subcommand_from sa" -f -a "list" -d 'List those that these words name; without words all'
complete -c vesper -n "__fish_vesper_using_subcommand help; and __fish_seen_subcommand_from sa" -f -a "show" -d 'Tell everything about the one that these words name'
complete -c vesper -n "__fish_vesper_using_subcommand help; and __fish_seen_subcommand_from sa" -f -a "monitor" -d 'Tell what happens to associations, as it happens'
complete -c vesper -n "__fish_vesper_using_subcommand help; and __fish_seen_subcommand_from sa" -f -a "import" -d 'Add those of a file of `ip xfrm state add` lines, all or none'
complete -c vesper -n "__fish_vesper_using_subcommand help; and __fish_seen_subcommand_from policy" -f -a "add" -d 'Add one: vm V src P dst P dir out tmpl src A dst B proto esp reqid N mode tunnel'
complete -c vesper -n "__fish_vesper_using_subcommand help; and __fish_seen_subcommand_from policy" -f -a "update" -d 'Add one in the place of that for the same packets, if there is one'
complete -c vesper -n "__fish_vesper_using_subcommand help; and __fish_seen_subcommand_from policy" -f -a "del" -d 'Delete those that these words name'
complete -c vesper -n "__fish_vesper_using_subcommand help; and __fish_seen_subcommand_from policy" -f -a "flush" -d 'Delete all that these words name; without words all'
complete -c vesper -n "__fish_vesper_using_subcommand help; and __fish_seen_subcommand_from policy" -f -a "list" -d 'List those that these words name; without words all'
complete -c vesper -n "__fish_vesper_using_subcommand help; and __fish_seen_subcommand_from policy" -f -a "show" -d 'Tell everything about those that these words name'
complete -c vesper -n "__fish_vesper_using_subcommand help; and __fish_seen_subcommand_from policy" -f -a "monitor" -d 'Tell when the policies of a machine change, as it happens'
complete -c vesper -n "__fish_vesper_using_subcommand help; and __fish_seen_subcommand_from policy" -f -a "import" -d 'Add those of a file of `ip xfrm policy add` lines, all or none'
complete -c vesper -n "__fish_vesper_using_subcommand help; and __fish_seen_subcommand_from vm" -f -a "list" -d 'List the machines'
complete -c vesper -n "__fish_vesper_using_subcommand help; and __fish_seen_subcommand_from vm" -f -a "show" -d 'Tell everything about one'
complete -c vesper -n "__fish_vesper_using_subcommand help; and __fish_seen_subcommand_from vm" -f -a "add" -d 'Add one'
complete -c vesper -n "__fish_vesper_using_subcommand help; and __fish_seen_subcommand_from vm" -f -a "set" -d 'Change the limits of one while its packets pass'
complete -c vesper -n "__fish_vesper_using_subcommand help; and __fish_seen_subcommand_from vm" -f -a "move" -d 'Move one behind another port; its associations stay'
complete -c vesper -n "__fish_vesper_using_subcommand help; and __fish_seen_subcommand_from vm" -f -a "del" -d 'Remove one with its port, policies and associations'
complete -c vesper -n "__fish_vesper_using_subcommand help; and __fish_seen_subcommand_from switch" -f -a "list" -d 'The NIC switches and their virtual functions'
complete -c vesper -n "__fish_vesper_using_subcommand help; and __fish_seen_subcommand_from switch" -f -a "create" -d 'Make the NIC switch of an adapter: once, and before its first machine'
complete -c vesper -n "__fish_vesper_using_subcommand help; and __fish_seen_subcommand_from port" -f -a "list" -d 'List the ports'
complete -c vesper -n "__fish_vesper_using_subcommand help; and __fish_seen_subcommand_from port" -f -a "stat" -d 'The counters of one port, as `ethtool -S` prints them'
complete -c vesper -n "__fish_vesper_using_subcommand help; and __fish_seen_subcommand_from adapter" -f -a "list" -d 'What the adapters have, can do, and do at present'
complete -c vesper -n "__fish_vesper_using_subcommand help; and __fish_seen_subcommand_from adapter" -f -a "why-not" -d 'Whether an adapter would take an association with these words, or every reason why not'
complete -c vesper -n "__fish_vesper_using_subcommand help; and __fish_seen_subcommand_from verify" -f -a "pcap" -d 'Open every ESP packet of a capture'
complete -c vesper -n "__fish_vesper_using_subcommand help; and __fish_seen_subcommand_from verify" -f -a "encap" -d 'Seal every IP packet of a capture'
