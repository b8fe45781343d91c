-- Acknowledge an ended job: every required sink has its `done`, or has run out of its budget.
-- KEYS  1 job  2 stream
-- ARGV  1 group  2 entry  3… field, value of the record (the sinks' outcome)
-- Gives acknowledged | fenced  the job has another place: another worker took it over, and says what its sinks have got
drop_entry(KEYS[2], ARGV[1], ARGV[2])
if redis.call('HGET', KEYS[1], 'entry') ~= ARGV[2] then
  return 'fenced'
end
redis.call('HSET', KEYS[1], 'entry', '', unpack(ARGV, 3))
return 'acknowledged'
